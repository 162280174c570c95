# SPDX-License-Identifier: Apache-2.0
# cmake --install: the program, and the library as find_package(firstlight) finds it: firstlight::firstlight is all of it,
# firstlight::ckpt and so on are single layers with what is below them.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/firstlight)

add_library(firstlight_all INTERFACE)
set(exported ${FIRSTLIGHT_LAYERS})
list(REMOVE_ITEM exported firstlight_cli)  # the program's own
target_link_libraries(firstlight_all INTERFACE ${exported})
set_target_properties(firstlight_all PROPERTIES EXPORT_NAME firstlight)
add_library(firstlight::firstlight ALIAS firstlight_all)
foreach(layer ${exported} firstlight_flags)
  string(REPLACE "firstlight_" "" short ${layer})
  set_target_properties(${layer} PROPERTIES EXPORT_NAME ${short})
  add_library(firstlight::${short} ALIAS ${layer})
endforeach()

install(TARGETS firstlight RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT firstlight)
install(TARGETS firstlight_all firstlight_flags ${exported} EXPORT firstlight-targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT firstlight)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/firstlight DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT firstlight
        FILES_MATCHING PATTERN "*.h" PATTERN cli EXCLUDE PATTERN "test_*.h" EXCLUDE)
install(EXPORT firstlight-targets NAMESPACE firstlight:: DESTINATION ${package_dir} COMPONENT firstlight)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/firstlight-config.cmake.in firstlight-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(firstlight-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/firstlight-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/firstlight-config-version.cmake
        DESTINATION ${package_dir} COMPONENT firstlight)
