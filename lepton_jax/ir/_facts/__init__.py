"""How facts about values are represented, and what each primitive does to them."""
