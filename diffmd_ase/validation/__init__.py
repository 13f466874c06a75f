"""Do data, independent samples and dynamics of a model agree?"""

from .._moved import forward

__getattr__ = forward(__name__, "validation.validate validation.bench")
