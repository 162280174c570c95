# SPDX-License-Identifier: Apache-2.0
# DNNL::dnnl, if oneDNN is installed. Its own CMake package on Debian 12 wants OpenCL's headers, which its CPU half never uses,
# and fails without them, so library and header are looked for directly. Also installed, for firstlight-config.cmake.
find_path(FIRSTLIGHT_DNNL_INCLUDE dnnl.hpp)
find_library(FIRSTLIGHT_DNNL_LIBRARY dnnl)
if(FIRSTLIGHT_DNNL_INCLUDE AND FIRSTLIGHT_DNNL_LIBRARY AND NOT TARGET DNNL::dnnl)
  add_library(DNNL::dnnl UNKNOWN IMPORTED)
  set_target_properties(DNNL::dnnl PROPERTIES IMPORTED_LOCATION ${FIRSTLIGHT_DNNL_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES ${FIRSTLIGHT_DNNL_INCLUDE})
endif()
