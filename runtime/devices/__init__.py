"""The PC's devices, driven by virtual time. `build_platform` makes the whole board."""

from runtime.devices.platform import PcPlatform, build_platform

__all__ = ["PcPlatform", "build_platform"]
