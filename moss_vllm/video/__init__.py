"""Files and folders of frames -> frames and their times."""
