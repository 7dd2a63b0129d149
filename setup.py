"""Packaging of idode_gin. Tool settings live in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (ROOT / "idode_gin/__init__.py").read_text(encoding="utf-8")
).group(1)

REQUIREMENTS = [
    "absl-py>=2.1",
    "beartype>=0.20",
    "clu>=0.0.12",
    "flax>=0.10.6",
    "gin-config>=0.5",
    "jax>=0.6.2",
    "jaxtyping>=0.3",
    "matplotlib>=3.8",
    "numpy>=2",
    "optax>=0.2.4",
    "orbax-checkpoint>=0.11.13",
    "packaging>=23",
    "pillow>=11",
    "protobuf>=7.36.1,<8",
    "pyarrow>=18",
    "scikit-learn>=1.5",
    "scipy>=1.14",
    "seqio>=0.0.20",
    "tensorboard>=2.19",
    "tensorflow>=2.21",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.66",
]

EXTRAS = {
    "cuda12": ["jax[cuda12]>=0.6.2"],
    "cuda13": ["jax[cuda13]>=0.7"],
    "tpu": ["jax[tpu]>=0.6.2"],
    "gcs": ["gcsfs>=2025.7"],
    "s3": ["orbax-checkpoint>=0.12.8,<0.13", "s3fs>=2025.7"],
    "docs": [
        "furo>=2025.7",
        "myst-nb>=1.3",
        "sphinx>=8.2",
    ],
    "test": [
        "flask>=3",
        "flask-cors>=5",
        "gcp-storage-emulator>=2026.7",
        "gcsfs>=2025.7",
        "hypothesis>=6.100",
        "import-linter>=2.1",
        "moto[s3]>=5.1",
        "mypy>=1.11",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "pyyaml>=6",
        "ruff>=0.9",
        "s3fs>=2025.7",
    ],
}

setuptools.setup(
    name="idode-gin",
    version=VERSION,
    description="Diffusion ODEs trained for maximum likelihood and scored exactly, in Gin files.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=setuptools.find_packages(
        include=["idode_gin", "idode_gin.*", "gin_configs", "gin_configs.*", "tasks", "tasks.*"]
    ),
    package_dir={"": "."},  # tests/feed/test_tasks_package.py
    package_data={"": ["*.gin"]},
    entry_points={"console_scripts": ["idode-gin = idode_gin.__main__:main"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
