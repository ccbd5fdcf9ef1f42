"""The laboratory: policies against simulated devices, links, clouds and sources, in virtual time, seeded.

worlds.py    what a world is, as data, and the worlds that policies are judged in
device.py    one device with its link and its share of the cloud, item by item; it fills observations
oracle.py    what could be had at best, knowing the world
baselines.py the policies to beat
laboratory.py runs a policy through a world, one device or many, and judges it window by window
"""
