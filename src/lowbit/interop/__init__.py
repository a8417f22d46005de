"""Import and export of other projects' files: one file per format, and a table (doors.py)."""
