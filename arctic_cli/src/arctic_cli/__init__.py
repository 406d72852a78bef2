"""The command line of Arctic. Commands are loaded when they are called, so that asking for help costs nothing."""

__version__ = "0.1.0"
