# SPDX-License-Identifier: Apache-2.0
"""The pip route: builds CMakeLists.txt with the ROS packages of this environment and packs what it installs.

colcon does not read this file, because package.xml names ament_cmake.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

NAME = "smolvla_mem_ros"
HERE = Path(__file__).parent.resolve()


class BuildWithCMake(build_py):
    def run(self) -> None:
        super().run()
        work = Path(self.get_finalized_command("build").build_temp).resolve() / "ament"
        install = work / "install"
        # pip's build isolation comes as PYTHONPATH; the ROS packages are those of the environment itself.
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        env.setdefault("AMENT_PREFIX_PATH", sys.prefix)
        env["PATH"] = f"{sys.prefix}/bin{os.pathsep}{env['PATH']}"
        configure = [
            *("cmake", "-S", str(HERE), "-B", str(work / "build")),
            *("-DBUILD_TESTING=OFF", "-DCMAKE_BUILD_TYPE=Release", f"-DPython3_EXECUTABLE={sys.executable}"),
            f"-DCMAKE_PREFIX_PATH={env['AMENT_PREFIX_PATH'].replace(os.pathsep, ';')}",
            f"-DCMAKE_INSTALL_PREFIX={install}",
        ]
        subprocess.run(configure, env=env, check=True)
        build = ["cmake", "--build", str(work / "build"), "--target", "install", "--parallel"]
        subprocess.run(build, env=env, check=True)

        module = next(install.glob(f"lib/python3*/*-packages/{NAME}"))
        ignore = shutil.ignore_patterns("__pycache__", "*.c")
        shutil.copytree(module, Path(self.build_lib) / NAME, dirs_exist_ok=True, ignore=ignore)
        data: dict[str, list[str]] = {}
        for top in ("lib", "share"):
            for file in sorted((install / top).rglob("*")):
                if file.is_file() and module.parent not in file.parents:
                    folder = str(file.parent.relative_to(install))
                    data.setdefault(folder, []).append(os.path.relpath(file, HERE))
        self.distribution.data_files = sorted(data.items())


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:  # the messages are compiled, so the wheel is for one platform
        return True


setup(packages=[NAME], cmdclass={"build_py": BuildWithCMake}, distclass=BinaryDistribution)
