include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(kvcondense_package "${CMAKE_INSTALL_LIBDIR}/cmake/kvcondense")

install(DIRECTORY "${kvcondense_SOURCE_DIR}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.inl" PATTERN "*.cuh" PATTERN "*.h")
install(TARGETS kvcondense kvcondense_any EXPORT kvcondenseTargets
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT kvcondenseTargets NAMESPACE kvcondense:: DESTINATION "${kvcondense_package}")

configure_package_config_file("${kvcondense_SOURCE_DIR}/cmake/kvcondenseConfig.cmake.in"
  "${kvcondense_BINARY_DIR}/kvcondenseConfig.cmake" INSTALL_DESTINATION "${kvcondense_package}")
write_basic_package_version_file("${kvcondense_BINARY_DIR}/kvcondenseConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${kvcondense_BINARY_DIR}/kvcondenseConfig.cmake"
  "${kvcondense_BINARY_DIR}/kvcondenseConfigVersion.cmake"
  "${kvcondense_SOURCE_DIR}/cmake/kvcondense_cuda.cmake" DESTINATION "${kvcondense_package}")
install(FILES "${kvcondense_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
