"""A contract class for each kind of component: tests that every one of its kind should pass.

Subclass one in your own tests and override its fixture ``recipe`` with a recipe that selects your component:

    class TestMyScheduler(SchedulerFactoryContract):
        @pytest.fixture
        def recipe(self, tiny_recipe):
            return tiny_recipe | {"scheduler": {"type": "mine"}}

The plugin that brings the component is installed, or the fixture ``components`` lists its classes. The recipe trains in
fp32, without dropout, and at least eight rows.
"""
