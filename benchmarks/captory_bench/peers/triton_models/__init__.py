"""Models in Python for Triton: files that `triton_repository` copies, each as `1/model.py` of its model.

They run in Triton's environment; the packages that they import of ours are linked beside them.
"""
