"""Sphinx settings of the documentation. Build it with `make docs`."""

import os
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT)]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The tutorials start programs from a folder of their own.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

import idode_gin  # noqa: E402

project = "idode_gin"
author = "the authors of idode_gin"
version = release = idode_gin.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "plain_docstrings",
    "generated_pages",
    "checked_names",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"idode_gin {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

nitpicky = True
# A public name of this project must exist. Others' types, and shapes in annotations, have no page.
nitpick_ignore_regex = [
    ("py:.*", r"(?!(idode_gin|tasks)\.).*"),
    ("py:class", r".*\.(_\w+|T|Found)"),  # private names and type variables in signatures
]
suppress_warnings = ["ref.python"]  # `gamma` of an annotation is an attribute of several classes
