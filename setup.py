from setuptools import setup

setup(name='mmsb-resnet', version='0.1.0', packages=['mmsb'])
