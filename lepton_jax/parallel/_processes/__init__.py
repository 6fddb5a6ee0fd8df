"""How processes of one program watch one another."""
