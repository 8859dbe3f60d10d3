"""Pictures from outside: read, scaled, found in folders and archives, and drawn again."""
