"""How training draws gamma, and with what density."""
