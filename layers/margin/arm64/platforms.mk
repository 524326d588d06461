platforms := manylinux_2_28_aarch64 manylinux2014_aarch64
