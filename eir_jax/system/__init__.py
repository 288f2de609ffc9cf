"""What any program needs: settings, errors, files, processes, devices."""
