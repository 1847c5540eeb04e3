"""The soak: numbered, checksummed traffic while its surroundings die and return.

``make soak SECONDS=600 SEED=7``. A seeded schedule kills QEMUs and the vhost-user backend,
attaches and detaches ports and pulls cables out. Every frame that was sent is accounted
for: received, or lost to a fault that was done on purpose, at a moment when it can only have
been on the way. One that is missing otherwise, comes twice, or comes damaged is a failure.
"""
