"""The free energy F(φ, ψ) of alanine dipeptide in closed form: a Fourier series of order 5.

The coefficients are those of the regression case ves/rt-md_le-2d-fourier-aladipep of PLUMED 2
(https://github.com/plumed/plumed2), in kJ/mol; -0.400906 makes kT at 300 K of them.
"""

import numpy as np
import torch

from diffmd_ase.potentials.base import Potential
from diffmd_ase.state import Evaluation

COEFFICIENTS = -0.400906 * np.array(  # rows: 1, cos φ, sin φ, cos 2φ, …; columns: of ψ
    [
        [
            0,
            4.516575674,
            2.195593223,
            3.276107732,
            -3.615080634,
            -1.255774302,
            0.5205985047,
            -0.1719749534,
            -0.1450554771,
            0.014987595,
            -0.009560237901,
        ],
        [
            -0.2496601865,
            14.40782885,
            -0.9180965553,
            -3.73124444,
            0.2480736122,
            0.5436697326,
            -0.1377398864,
            0.338637577,
            0.1134500796,
            0.13095253,
            -0.05198090086,
        ],
        [
            -16.48112769,
            1.001119239,
            -17.96619371,
            -0.4685687905,
            1.791444187,
            0.1403416188,
            -0.2357807302,
            -0.1040615403,
            -0.03958341335,
            -0.02487894774,
            0.02096549822,
        ],
        [
            -5.277162007,
            0.06451531349,
            0.7237974206,
            -3.207919436,
            -0.7632521517,
            0.2399875462,
            -0.2247708335,
            -0.1877806293,
            0.1213660093,
            -0.1204761975,
            -0.07850356848,
        ],
        [
            13.47742951,
            0.5117071644,
            -4.88574467,
            0.1594072561,
            4.34760714,
            0.1497063081,
            -0.2089919302,
            0.1069495264,
            0.4022048658,
            -0.01409091524,
            0.09699907118,
        ],
        [
            -9.391245257,
            0.28481194,
            -0.2679307044,
            -2.302778941,
            0.3345938932,
            1.005908505,
            0.02136148129,
            0.01594481275,
            0.03250507504,
            0.1997429136,
            -0.1034905,
        ],
        [
            -1.87630019,
            -0.193700754,
            -0.5162303379,
            -0.1946605152,
            2.891571188,
            -0.1304815402,
            -0.8951277012,
            0.01597992962,
            -0.2574139022,
            -0.1216018391,
            -0.1481503846,
        ],
        [
            0.2406202777,
            0.0608061045,
            0.03261353285,
            -1.130763615,
            -0.1687004155,
            0.3073076358,
            -0.04686362569,
            -0.1775240561,
            0.1218345935,
            -0.01513766481,
            -0.07215590349,
        ],
        [
            -0.09423768749,
            0.2417924915,
            0.1246928388,
            -0.05848715849,
            1.781458362,
            0.02962469036,
            -0.325867191,
            0.08720415542,
            0.1497895126,
            -0.05769135834,
            0.0224792959,
        ],
        [
            0.1660611752,
            -0.02216130214,
            0.03720405996,
            -0.3849006698,
            -0.09106844829,
            0.09346891622,
            0.05978444328,
            -0.09030854873,
            0.04651266587,
            -0.01226666417,
            -0.06107457966,
        ],
        [
            -0.1250344573,
            0.001520948498,
            -0.04053133789,
            -0.05956965392,
            0.03504151549,
            0.04950281347,
            -0.1206606853,
            0.03135718491,
            0.09410027869,
            -0.04284285607,
            0.01536644698,
        ],
    ]
)


def basis(s):
    """1, cos s, sin s, cos 2s, … (…, 11), and its derivative."""
    k = torch.arange(1, 6).to(s)
    c, n = (k * s[..., None]).cos(), (k * s[..., None]).sin()
    values = torch.stack((c, n), -1).flatten(-2)
    slopes = torch.stack((-k * n, k * c), -1).flatten(-2)
    one = torch.ones_like(s)[..., None]
    return torch.cat((one, values), -1), torch.cat((0 * one, slopes), -1)


class Surface(Potential):
    """F in eV of (φ, ψ) = (x, y) of the one atom, in rad; ½ kT z² across."""

    def __init__(self, system, kT):
        self.system, self.kT = system, kT

    def __call__(self, x, *, stress=False):
        (a, da), (b, db) = basis(x[..., 0, 0]), basis(x[..., 0, 1])
        C, z = torch.tensor(COEFFICIENTS).to(x), x[..., 0, 2]
        f = ((a @ C) * b).sum(-1) + 0.5 * z * z
        slope = torch.stack((((da @ C) * b).sum(-1), ((a @ C) * db).sum(-1), z), -1)
        return Evaluation(self.kT * f, -self.kT * slope[..., None, :])


def projected(phi):
    """F(φ) in kT, up to a constant, by the sum over a fine period of ψ."""
    psi = torch.linspace(-torch.pi, torch.pi, 401)[:-1]
    f = (basis(phi)[0] @ torch.tensor(COEFFICIENTS)) @ basis(psi)[0].T
    return -torch.logsumexp(-f, -1)
