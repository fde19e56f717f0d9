// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EnumerableSet} from "@openzeppelin/contracts/utils/structs/EnumerableSet.sol";

import {IOperatorRegistry} from "./interfaces/IOperatorRegistry.sol";

/// @notice IOperatorRegistry says what it does.
contract OperatorRegistry is IOperatorRegistry, ReentrancyGuardTransient {
    using EnumerableSet for EnumerableSet.AddressSet;
    using SafeERC20 for IERC20;

    uint256 public constant LONGEST_ENDPOINT = 256;
    uint256 public constant LONGEST_MODEL_NAME = 64;
    uint256 public constant LONGEST_REGION = 31;
    uint256 public constant LONGEST_DEVICE_CLASS = 31;
    uint256 public constant MOST_MODELS = 16;
    uint64 public constant LONGEST_UNBONDING_DELAY = 90 days;
    uint64 public constant LONGEST_HOLD = 30 days;

    IERC20 public immutable token;
    uint256 public immutable minimumStake;
    uint64 public immutable unbondingDelay;
    address public immutable governance;

    address public slasher;
    mapping(address key => address operator) public accountOf;
    mapping(address operator => Operator) private _operators;
    EnumerableSet.AddressSet private _listed;

    modifier onlySlasher() {
        if (msg.sender != slasher) revert NotSlasher(msg.sender, slasher);
        _;
    }

    constructor(IERC20 token_, uint256 minimumStake_, uint64 unbondingDelay_, address governance_) {
        if (minimumStake_ == 0) revert MinimumStakeIsZero();
        if (unbondingDelay_ == 0 || unbondingDelay_ > LONGEST_UNBONDING_DELAY) {
            revert UnbondingDelayOutOfRange(unbondingDelay_, 1, LONGEST_UNBONDING_DELAY);
        }
        if (governance_ == address(0)) revert GovernanceIsZero();
        token = token_;
        minimumStake = minimumStake_;
        unbondingDelay = unbondingDelay_;
        governance = governance_;
    }

    /// @inheritdoc IOperatorRegistry
    function register(Offer calldata offer) external {
        if (_isRegistered(msg.sender)) revert AlreadyRegistered(msg.sender);

        _operators[msg.sender].account = msg.sender;
        _describe(msg.sender, offer);

        emit Registered(msg.sender, offer.key, offer.endpoint);
    }

    /// @inheritdoc IOperatorRegistry
    function update(Offer calldata offer) external {
        _registered(msg.sender);

        _describe(msg.sender, offer);

        emit Updated(msg.sender, offer.key, offer.endpoint);
    }

    /// @inheritdoc IOperatorRegistry
    function setPrice(string calldata model, uint128 priceIn, uint128 priceOut) external {
        Model[] storage models = _registered(msg.sender).models;
        bytes32 name = keccak256(bytes(model));
        for (uint256 i = 0; i < models.length; ++i) {
            if (keccak256(bytes(models[i].name)) != name) continue;
            models[i].priceIn = priceIn;
            models[i].priceOut = priceOut;
            emit PriceSet(msg.sender, model, priceIn, priceOut);
            return;
        }
        revert ModelNotServed(model);
    }

    /// @inheritdoc IOperatorRegistry
    function stake(uint256 amount) external nonReentrant {
        Operator storage operator = _registered(msg.sender);
        if (amount == 0) revert AmountIsZero();

        operator.stake += amount;
        _relist(operator);

        emit Staked(msg.sender, amount, operator.stake);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert ReceivedOtherAmount(received, amount);
    }

    /// @inheritdoc IOperatorRegistry
    function startUnbonding(uint256 amount) external {
        Operator storage operator = _registered(msg.sender);
        if (amount == 0) revert AmountIsZero();
        if (amount > operator.stake) revert StakeTooSmall(operator.stake, amount);

        operator.stake -= amount;
        operator.unbonding += amount;
        operator.withdrawableAt = uint64(block.timestamp) + unbondingDelay;
        _relist(operator);

        emit UnbondingStarted(msg.sender, amount, operator.stake, operator.withdrawableAt);
    }

    /// @inheritdoc IOperatorRegistry
    function withdraw() external nonReentrant {
        Operator storage operator = _registered(msg.sender);
        uint256 amount = operator.unbonding;
        if (amount == 0) revert NothingToWithdraw(msg.sender);
        uint64 released = _releasedAt(operator);
        if (block.timestamp < released) revert StillUnbonding(released, block.timestamp);

        operator.unbonding = 0;
        operator.withdrawableAt = 0;

        emit Withdrawn(msg.sender, amount);
        token.safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc IOperatorRegistry
    function pause() external {
        Operator storage operator = _registered(msg.sender);
        if (operator.paused) revert AlreadyPaused(msg.sender);

        operator.paused = true;

        emit Paused(msg.sender);
    }

    /// @inheritdoc IOperatorRegistry
    function unpause() external {
        Operator storage operator = _registered(msg.sender);
        if (!operator.paused) revert NotPaused(msg.sender);

        operator.paused = false;

        emit Unpaused(msg.sender);
    }

    /// @inheritdoc IOperatorRegistry
    function setSlasher(address slasher_) external {
        if (msg.sender != governance) revert NotGovernance(msg.sender, governance);

        slasher = slasher_;

        emit SlasherSet(slasher_);
    }

    /// @inheritdoc IOperatorRegistry
    function hold(address operator, uint64 until) external onlySlasher {
        Operator storage held = _registered(operator);
        uint256 latest = block.timestamp + LONGEST_HOLD;
        if (until > latest) revert HoldTooLong(until, latest);

        held.heldUntil = until;

        emit Held(operator, until);
    }

    /// @inheritdoc IOperatorRegistry
    function slash(address operator, uint256 amount, address to, bytes32 evidence)
        external
        onlySlasher
        nonReentrant
        returns (uint256 taken)
    {
        Operator storage slashed = _registered(operator);
        if (amount == 0) revert AmountIsZero();
        if (to == address(0) || to == address(this)) revert RecipientNotAllowed(to);
        uint256 fromStake = amount < slashed.stake ? amount : slashed.stake;
        uint256 left = amount - fromStake;
        uint256 fromUnbonding = left < slashed.unbonding ? left : slashed.unbonding;
        taken = fromStake + fromUnbonding;
        if (taken == 0) revert NothingToSlash(operator);

        slashed.stake -= fromStake;
        slashed.unbonding -= fromUnbonding;
        _relist(slashed);

        emit Slashed(operator, taken, slashed.stake, to, evidence);
        token.safeTransfer(to, taken);
    }

    /// @inheritdoc IOperatorRegistry
    function releasedAt(address operator) external view returns (uint64) {
        return _releasedAt(_registered(operator));
    }

    /// @inheritdoc IOperatorRegistry
    function isActive(address operator) external view returns (bool) {
        return _listed.contains(operator) && !_operators[operator].paused;
    }

    /// @inheritdoc IOperatorRegistry
    function operatorOf(address operator) external view returns (Operator memory) {
        return _registered(operator);
    }

    /// @inheritdoc IOperatorRegistry
    function operatorCount() external view returns (uint256) {
        return _listed.length();
    }

    /// @inheritdoc IOperatorRegistry
    function operators(uint256 offset, uint256 limit) external view returns (Operator[] memory page) {
        uint256 count = _listed.length();
        uint256 left = offset < count ? count - offset : 0;
        page = new Operator[](limit < left ? limit : left);
        for (uint256 i = 0; i < page.length; ++i) {
            page[i] = _operators[_listed.at(offset + i)];
        }
    }

    function _describe(address account, Offer calldata offer) private {
        if (offer.key == address(0)) revert KeyIsZero();
        address holder = accountOf[offer.key];
        if (holder != address(0) && holder != account) revert KeyTaken(offer.key, holder);
        uint256 length = bytes(offer.endpoint).length;
        if (length == 0 || length > LONGEST_ENDPOINT) revert EndpointLength(length, LONGEST_ENDPOINT);
        length = bytes(offer.region).length;
        if (length > LONGEST_REGION) revert RegionLength(length, LONGEST_REGION);
        length = bytes(offer.deviceClass).length;
        if (length == 0 || length > LONGEST_DEVICE_CLASS) revert DeviceClassLength(length, LONGEST_DEVICE_CLASS);
        if (offer.capacity == 0) revert CapacityIsZero();

        accountOf[offer.key] = account;
        Operator storage operator = _operators[account];
        operator.key = offer.key;
        operator.endpoint = offer.endpoint;
        operator.region = offer.region;
        operator.deviceClass = offer.deviceClass;
        operator.capacity = offer.capacity;
        _serve(operator, offer.models);
    }

    function _serve(Operator storage operator, Model[] calldata models) private {
        if (models.length == 0 || models.length > MOST_MODELS) revert ModelCount(models.length, MOST_MODELS);

        delete operator.models;
        bytes32[] memory names = new bytes32[](models.length);
        for (uint256 i = 0; i < models.length; ++i) {
            uint256 length = bytes(models[i].name).length;
            if (length == 0 || length > LONGEST_MODEL_NAME) revert ModelNameLength(models[i].name, LONGEST_MODEL_NAME);
            if (models[i].manifestHash == 0) revert ModelHashIsZero(models[i].name);
            names[i] = keccak256(bytes(models[i].name));
            for (uint256 j = 0; j < i; ++j) {
                if (names[j] == names[i]) revert ModelTwice(models[i].name);
            }
            operator.models.push(models[i]);
        }
    }

    /// @dev A hold moves the end of the delay, by LONGEST_HOLD at most: an operator can always leave in the end.
    function _releasedAt(Operator storage operator) private view returns (uint64) {
        uint64 last = operator.withdrawableAt + LONGEST_HOLD;
        uint64 held = operator.heldUntil < last ? operator.heldUntil : last;
        return held > operator.withdrawableAt ? held : operator.withdrawableAt;
    }

    /// @dev Keeps the list what its documentation says: exactly those whose stake is at least the minimum.
    function _relist(Operator storage operator) private {
        if (operator.stake >= minimumStake) _listed.add(operator.account);
        else _listed.remove(operator.account);
    }

    function _registered(address account) private view returns (Operator storage) {
        if (!_isRegistered(account)) revert NotRegistered(account);
        return _operators[account];
    }

    function _isRegistered(address account) private view returns (bool) {
        return _operators[account].account != address(0);
    }
}
