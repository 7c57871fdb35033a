"""Media that are broken by chance or on purpose, and what may come of them."""
