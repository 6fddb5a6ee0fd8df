"""Programs that become smaller: units, layers and blocks are cut out with all that must go with them."""
