"""Who proposes candidate regions: one module each, its file name is its name. See interfaces.Detector."""
