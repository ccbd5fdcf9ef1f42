"""An example without a camera: a fleet of devices reports its own health. See `taskified.py`."""
