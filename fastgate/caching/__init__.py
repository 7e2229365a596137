"""The response cache: storage rules, tiers, and prediction."""
