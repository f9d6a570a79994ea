"""Data of others as Examples: data files, their records, and regions in other formats (formats/, released)."""
