"""What knows nothing of images: files, folders, processes."""
