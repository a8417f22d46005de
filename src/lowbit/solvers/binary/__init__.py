"""Binary codes from data."""
