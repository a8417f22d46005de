"""Other projects' files in and out: one file a format, a table of them (doors.py)."""
