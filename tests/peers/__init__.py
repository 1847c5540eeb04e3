"""Real peers for tests, with their clean-up checks.

``netns`` is the Linux kernel behind a TAP device, ``testpmd`` is DPDK's vhost-user
backend, ``components`` says what a machine lacks,
``leaks`` what a test left.
"""
