"""The live app: what it reads, what it shows, and what happens on a change."""
