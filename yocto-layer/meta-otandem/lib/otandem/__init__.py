"""What the classes and recipes of the layer compute, as plain Python: BitBake loads it, and so do Buildroot's post-image
step and the project's tests, which need no BitBake.

`settings` judges what an integrator has set, `boot` makes the files that a bootloader reads, `update` makes the update
image and its job document.
"""

BBIMPORTS = ["boot", "settings", "update"]
