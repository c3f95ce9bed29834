"""An interactive page for one run: losses and sharpness over the steps, risers and fallers, the opposing pairs.

The page needs no server. From the file system, browsers let a page load nothing but scripts and pictures, so the data
are small scripts that hand their content to the page, each loaded when it is shown:

    runs.js                            the other runs of the report, and the figures drawn from each
    <run>/index.html
    <run>/data-<key>/run.js            everything over the steps, and the pairs
                     other/jacobian_norm.js  the other recorded quantities, one file each
                     steps/0000.js     risers and fallers of `STEPS` steps
                     examples/0000.js  what `BLOCK` training examples are, and images/0000.png how they look
                     series/0000.js    their losses over the steps
                     ids.js            which training examples there are

Numbers are base64 of little-endian arrays, exact to the bit. Only points are kept that are among the risers and
fallers of a step or in a pair. Their rank is their position in the files: members of pairs first, then those selected
most often, so that what is shown together is stored together.
"""

from opposing_signals.report.explorer.build import build_explorer, build_explorers

__all__ = ["build_explorer", "build_explorers"]
