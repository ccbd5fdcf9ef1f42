"""A task in the cloud that never comes back from OpenCV."""

import cv2
import numpy as np
from gates import say


def take():
    return True, (np.zeros((300, 400, 3), np.uint8),)


def stay(image):
    say("in OpenCV")
    while True:
        cv2.cvtColor(image, cv2.COLOR_BGR2HSV)


def show(image):
    return True


tasks = [take, stay, show]
