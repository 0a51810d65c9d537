"""Puts the top-level folders trainers/ and planners/ below the package nnunetv2_unimrseg; adds the HTML templates."""

from setuptools import find_packages, setup

PACKAGE = "nnunetv2_unimrseg"

setup(
    packages=[
        *find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
        f"{PACKAGE}.trainers",
        f"{PACKAGE}.planners",
    ],
    package_dir={f"{PACKAGE}.trainers": "trainers", f"{PACKAGE}.planners": "planners"},
    package_data={PACKAGE: ["py.typed"], f"{PACKAGE}.reports": ["templates/*"]},
)
