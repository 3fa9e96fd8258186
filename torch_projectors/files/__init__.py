"""Files of the field: maps and stacks of images (MRC), and tables of particles (STAR)."""

from .maps import read_map, read_mask, write_map
from .particles import Particles
from .stacks import Stacks, StackWriter

__all__ = ["Particles", "StackWriter", "Stacks", "read_map", "read_mask", "write_map"]
