"""Files, folders, locks, processes, threads, hardware: nothing here knows of images."""
