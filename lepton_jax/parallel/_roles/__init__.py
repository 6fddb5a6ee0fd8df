"""How roles are found: by names, by shapes, by what comes back."""
