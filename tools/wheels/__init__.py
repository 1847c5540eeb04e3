"""The wheels: built for each platform, checked, and tried in bare systems."""
