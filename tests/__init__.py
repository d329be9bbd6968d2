import pytest

# An assertion that fails in a helper shows its values too.
pytest.register_assert_rewrite("tests.helpers", "tests.kernels", "tests.unit")
