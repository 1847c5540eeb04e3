"""What fits virtnic into other programs: one module for each, each behind an extra."""
