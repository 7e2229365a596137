"""The response cache: what may be stored, where it is kept, and what is fetched before anybody asks."""
