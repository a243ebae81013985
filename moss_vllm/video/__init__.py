"""Video files and folders of images -> frames and their times."""
