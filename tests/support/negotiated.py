"""What a port and its device negotiated."""

import virtnic


def accepted(port: virtnic.Port) -> set[str]:
    """Return the names of the features in force."""
    return {feature.name for feature in port.features if feature.accepted}


def offered(port: virtnic.Port) -> set[str]:
    """Return the names of the features that the device has."""
    return {feature.name for feature in port.features if feature.offered}
