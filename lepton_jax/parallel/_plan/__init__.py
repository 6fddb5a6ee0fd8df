"""What plans consist of: which program they were made for, their tables and their drawings."""
