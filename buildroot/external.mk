include $(sort $(wildcard $(BR2_EXTERNAL_OTANDEM_PATH)/package/*/*.mk))
