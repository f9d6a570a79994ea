"""Files: reading what others wrote within bounds, and writing what survives a killed process.

text, jsonl, big_json, json_window   text and records, line by line or element by element
images, picture_files                pictures, and which file a name in the data means
atomic, folders, outputs, locks, filesystems, shard   what is written, where it may be, and by whom
manifest, failures                   what a run was, and how it ended
assets, plug, csv_writer, pages      shipped files, plug-ins, tables for spreadsheets, the head of HTML pages
"""
