"""The documentation site: docs/ with the reference of API and commands, as HTML in build/site."""
