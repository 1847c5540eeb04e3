"""Builds the wheels for each platform, checks them, and tests them in minimal systems."""
